{#
    No time of a row is after the end of the newest run, with a margin for the clocks of shop and warehouse.

    It compares with the ledger and not with a clock, so that old data give the same result on any day.
    Rows of a run in progress are checked once it has ended.
#}
{% test is_not_in_the_future(model, columns, margin_minutes=10) %}
with

checked as (
    select * from {{ model }}
),

newest as (
    select
        max(runs.run_id) as run_id,
        max(runs.ended_at) + interval '{{ margin_minutes }} minutes' as latest_at
    from {{ source('etl', 'runs') }} as runs
    where runs.ended_at is not null
)

select checked.*
from checked
cross join newest
where
    checked._etl_run_id <= newest.run_id
    and greatest({{ columns | join(', ') }}) > newest.latest_at
{% endtest %}
