{# Snapshot times have a time zone, as in `raw`; dbt compares this type with that of `updated_at`. #}
{% macro postgres__snapshot_get_time() -%}
    {{ current_timestamp() }}
{%- endmacro %}
