{#
    The days, UTC, at whose end a version was valid: from a day on, and through the day of the newest ended run.

    A version may have ended later than that, in rows of a run in progress: days are counted for all stock alike, so
    they wait. They are timestamps without a zone, for in zones that skip a midnight a series of instants loses a day.
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
