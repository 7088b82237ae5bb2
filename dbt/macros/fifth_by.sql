{#
    The fifth, 1 to 5, of a row in the order of its group. Equal rows get the same fifth, that of their middle position:
    a group of equal rows is entirely in the third, and chance never decides a tie.
#}
{% macro fifth_by(ordering, group) -%}
    ceil(
        2.5 * (
            2 * (rank() over (partition by {{ group }} order by {{ ordering }}) - 1)
            + count(*) over (partition by {{ group }}, {{ ordering.split(' ')[0] }})
        ) / count(*) over (partition by {{ group }})
    )::integer
{%- endmacro %}
