{# Snapshots tell instants with a time zone, as `raw` does; dbt compares this type with that of `updated_at`. #}
{% macro postgres__snapshot_get_time() -%}
    {{ current_timestamp() }}
{%- endmacro %}
