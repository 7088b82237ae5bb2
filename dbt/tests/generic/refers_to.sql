{# What a column names exists in another model. Unlike `relationships`, it shows the whole row. #}
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
{% endtest %}
