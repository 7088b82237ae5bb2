{# Hours from one instant to another, to two places; null while one of them is missing. #}
{% macro hours_between(start_at, end_at) -%}
    round((extract(epoch from {{ end_at }} - {{ start_at }}) / 3600)::numeric, 2)
{%- endmacro %}
