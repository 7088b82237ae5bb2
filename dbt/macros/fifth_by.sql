{#
    The fifth in which a row lies within its group when ordered, 1 to 5: equal rows lie in the same one, that of their
    middle. So a group of equal rows is all in the third, and a tie is never decided by chance.
#}
{% macro fifth_by(ordering, group) -%}
    ceil(
        2.5 * (
            2 * (rank() over (partition by {{ group }} order by {{ ordering }}) - 1)
            + count(*) over (partition by {{ group }}, {{ ordering.split(' ')[0] }})
        ) / count(*) over (partition by {{ group }})
    )::integer
{%- endmacro %}
