{# The placed orders, each with its number among the orders of its customer; the condition selects customers. #}
{% macro numbered_orders(condition='true') -%}
    select
        placed.order_id,
        row_number() over (partition by placed.customer_id order by placed.ordered_at, placed.order_id) as customer_order_number
    from {{ ref('stg_orders') }} as placed
    where not placed.is_deleted and placed.status <> 'cart' and {{ condition }}
{%- endmacro %}
