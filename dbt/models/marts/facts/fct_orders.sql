{{
    config(
        unique_key='order_id',
        indexes=[
            {'columns': ['order_id'], 'unique': true},
            {'columns': ['customer_id']},
            {'columns': ['order_date']},
        ],
    )
}}

{%- call collect_touched_keys() %}
with

-- A deleted order has neither customer nor time here; a cart has no time.
changed_orders as (
    select
        orders.order_id,
        case when not orders.is_deleted then orders.customer_id end as customer_id,
        case when not orders.is_deleted then orders.ordered_at end as ordered_at
    from {{ ref('stg_orders') }} as orders
    where {{ is_touched('orders') }}
),

changed_items as (
    select items.order_item_id, items.order_id
    from {{ ref('stg_order_items') }} as items
    where {{ is_touched('items') }}
),

changed_payments as (
    select payments.payment_id, payments.order_id
    from {{ ref('stg_payments') }} as payments
    where {{ is_touched('payments') }}
),

-- Lines and payments that their order did not have at the last build: new, or moved from another order.
arrived_items as (
    select changed_items.order_item_id
    from changed_items
    left join {{ this }} as built on changed_items.order_id = built.order_id
    where array_position(built.order_item_ids, changed_items.order_item_id) is null
),

arrived_payments as (
    select changed_payments.payment_id
    from changed_payments
    left join {{ this }} as built on changed_payments.order_id = built.order_id
    where array_position(built.payment_ids, changed_payments.payment_id) is null
),

built_items as (
    select
        built.order_id,
        unnest(built.order_item_ids) as order_item_id
    from {{ this }} as built
),

built_payments as (
    select
        built.order_id,
        unnest(built.payment_ids) as payment_id
    from {{ this }} as built
),

-- Customers whose orders may have another sequence than at the last build.
reordered as (
    select
        changed_orders.customer_id,
        built.customer_id as built_customer_id
    from changed_orders
    left join {{ this }} as built on changed_orders.order_id = built.order_id
    where
        changed_orders.customer_id is distinct from built.customer_id
        or changed_orders.ordered_at is distinct from built.ordered_at
),

reordered_customers as (
    select reordered.customer_id from reordered
    union all
    select reordered.built_customer_id from reordered
),

numbered as (
    {{ numbered_orders('placed.customer_id in (select reordered_customers.customer_id from reordered_customers)') }}
),

renumbered as (
    select numbered.order_id
    from numbered
    left join {{ this }} as built on numbered.order_id = built.order_id
    where numbered.customer_order_number is distinct from built.customer_order_number
)

select changed_orders.order_id from changed_orders
union
select changed_items.order_id from changed_items
union
select changed_payments.order_id from changed_payments
union
select renumbered.order_id from renumbered
union
select built_items.order_id
from built_items
inner join arrived_items on built_items.order_item_id = arrived_items.order_item_id
union
select built_payments.order_id
from built_payments
inner join arrived_payments on built_payments.payment_id = arrived_payments.payment_id
union
-- Orders to which another version of the customer, or of a product, may now apply.
select orders.order_id
from {{ ref('stg_orders') }} as orders
inner join {{ ref('int_customers_history') }} as customers on orders.customer_id = customers.customer_id
where {{ is_touched('customers') }} and {{ had_begun('customers', 'orders.ordered_at') }}
union
select orders.order_id
from {{ ref('stg_orders') }} as orders
inner join {{ ref('stg_order_items') }} as items on orders.order_id = items.order_id
inner join {{ ref('int_products_history') }} as products on items.product_id = products.product_id
where {{ is_touched('products') }} and {{ had_begun('products', 'orders.ordered_at') }}
{%- endcall %}

with

orders as (
    select * from {{ ref('int_orders_enriched') }}
    {{ where_touched('order_id') }}
),

numbered as (
    {{ numbered_orders('placed.customer_id in (select orders.customer_id from orders)') }}
),

items as (
    select
        order_id,
        count(*)::integer as item_count,
        sum(quantity)::integer as unit_count,
        sum(gross_usd) as gross_usd,
        sum(cost_usd) as cost_usd,
        sum(margin_usd) as margin_usd,
        array_agg(order_item_id order by order_item_id) as order_item_ids
    from {{ ref('int_order_items_enriched') }}
    {%- if is_incremental() %}
        where order_item_id = any(array(
            select order_items.order_item_id
            from {{ ref('stg_order_items') }} as order_items
            where order_items.order_id in (select touched.order_id from {{ touched_keys() }} as touched)
        ))
    {%- endif %}
    group by order_id
),

payments as (
    select
        order_id,
        coalesce(sum(amount_usd) filter (where status = 'captured'), 0) as paid_usd,
        coalesce(-sum(amount_usd) filter (where status = 'refunded'), 0) as refunded_usd,
        min(paid_at) filter (where status = 'captured') as first_paid_at,
        array_agg(payment_id order by payment_id) as payment_ids
    from {{ ref('stg_payments') }}
    where
        not is_deleted
        {%- if is_incremental() %}
            and order_id in (select touched.order_id from {{ touched_keys() }} as touched)
        {%- endif %}
    group by order_id
),

metrics as (
    select
        orders.order_id,
        orders.customer_id,
        orders.campaign_id,
        orders.status,
        orders.channel,
        orders.customer_tier,
        orders.customer_country_code,
        coalesce(items.item_count, 0) as item_count,
        coalesce(items.unit_count, 0) as unit_count,
        coalesce(items.gross_usd, 0) as gross_usd,
        orders.discount_usd,
        orders.tax_usd,
        orders.shipping_usd,
        orders.total_usd,
        coalesce(payments.paid_usd, 0) as paid_usd,
        coalesce(payments.refunded_usd, 0) as refunded_usd,
        coalesce(items.cost_usd, 0) as cost_usd,
        coalesce(items.margin_usd, 0) as margin_usd,
        {{ hours_between('orders.ordered_at', 'payments.first_paid_at') }} as hours_to_pay,
        {{ hours_between('orders.ordered_at', 'orders.shipped_at') }} as hours_to_ship,
        {{ hours_between('orders.shipped_at', 'orders.delivered_at') }} as hours_to_deliver,
        numbered.customer_order_number,
        numbered.customer_order_number = 1 as is_first_order,
        orders.status in ('cancelled', 'returned') as is_reversed,
        orders.ordered_at,
        orders.order_date,
        coalesce(items.order_item_ids, '{}') as order_item_ids,
        coalesce(payments.payment_ids, '{}') as payment_ids,
        now() as dbt_built_at
    from orders
    inner join numbered on orders.order_id = numbered.order_id
    left join items on orders.order_id = items.order_id
    left join payments on orders.order_id = payments.order_id
)

select * from metrics
