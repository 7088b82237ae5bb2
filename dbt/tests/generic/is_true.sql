{# The expression is true for every row; null breaks the rule. #}
{% test is_true(model, expression) %}
select *
from {{ model }}
where not coalesce({{ expression }}, false)
{% endtest %}
