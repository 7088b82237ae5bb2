{# Use a folder's schema without dbt's prefix, so that schema `marts` is called marts. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ (custom_schema_name or target.schema) | trim }}
{%- endmacro %}
