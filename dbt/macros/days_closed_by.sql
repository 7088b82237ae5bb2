{#
    The days, UTC, at whose end a version was valid, from a given day through the day of the newest ended run.

    A run in progress may have brought versions that end later; their days wait, so that all stock has the same days.
    The days are timestamps without time zone, because a series of instants loses a day in zones that skip a midnight.
#}
{% macro days_closed_by(version, from_date) -%}
    generate_series(
        greatest(({{ version }}.valid_from at time zone 'UTC')::date, {{ from_date }})::timestamp,
        least(
            ({{ version }}.valid_to at time zone 'UTC')::date - 1,
            (select max(runs.ended_at at time zone 'UTC')::date from {{ source('etl', 'runs') }} as runs)
        )::timestamp,
        interval '1 day'
    )
{%- endmacro %}
