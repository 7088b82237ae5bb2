{# The days, UTC, at whose end a version was valid: from a day on, and through the day of the newest ended run. #}
{% macro days_closed_by(version, from_date) -%}
    generate_series(
        greatest(({{ version }}.valid_from at time zone 'UTC')::date, {{ from_date }}),
        coalesce(
            ({{ version }}.valid_to at time zone 'UTC')::date - 1,
            (select max(runs.ended_at at time zone 'UTC')::date from {{ source('etl', 'runs') }} as runs)
        ),
        interval '1 day'
    )
{%- endmacro %}
