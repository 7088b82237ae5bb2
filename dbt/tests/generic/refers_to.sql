{#
    Every value of a column exists in another model. Unlike `relationships`, the result has the whole row.

    Rows of a run in progress are checked once it has ended: it commits table by table, and the parent may be last.
#}
{% test refers_to(model, column, to, to_column) %}
with

referring as (
    select * from {{ model }}
),

known as (
    select {{ to_column }} as known_key from {{ to }}
)

select referring.*
from referring
left join known on referring.{{ column }} = known.known_key
where
    referring.{{ column }} is not null
    and known.known_key is null
    and referring._etl_run_id <= (
        select max(runs.run_id) from {{ source('etl', 'runs') }} as runs where runs.ended_at is not null
    )
{% endtest %}
