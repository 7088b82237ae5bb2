{# The expression holds for every row; an unknown answer breaks the rule. #}
{% test is_true(model, expression) %}
select *
from {{ model }}
where not coalesce({{ expression }}, false)
{% endtest %}
