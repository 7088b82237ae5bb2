{# Hours from one instant to another, to two decimal places; null if one of them is null. #}
{% macro hours_between(start_at, end_at) -%}
    round((extract(epoch from {{ end_at }} - {{ start_at }}) / 3600)::numeric, 2)
{%- endmacro %}
