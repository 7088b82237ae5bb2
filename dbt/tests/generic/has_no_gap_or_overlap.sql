{# Versions of a key follow each other: each begins where the one before ended, and the last one is open. #}
{% test has_no_gap_or_overlap(model, key) %}
{%- set key_columns = key | join(', ') %}
with

followed as (
    select
        {{ key_columns }},
        valid_from,
        valid_to,
        lead(valid_from) over (partition by {{ key_columns }} order by valid_from) as next_valid_from
    from {{ model }}
)

select * from followed
where
    valid_to is distinct from next_valid_from
    or valid_to <= valid_from
{% endtest %}
