{# The versions of a key are contiguous: each begins where the one before it ended, and the last one has no end. #}
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
