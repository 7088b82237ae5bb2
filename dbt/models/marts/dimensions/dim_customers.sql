{{ config(indexes=[{'columns': ['customer_id'], 'unique': true}]) }}

with

customers as (
    select * from {{ ref('stg_customers') }}
    where not is_deleted
),

orders as (
    select
        customer_id,
        count(*)::integer as order_count,
        min(ordered_at) as first_ordered_at,
        max(ordered_at) as last_ordered_at,
        sum(total_usd) filter (where status not in ('cancelled', 'returned')) as lifetime_total_usd
    from {{ ref('int_orders_enriched') }}
    group by customer_id
),

described as (
    select
        customers.customer_id,
        customers.email,
        customers.full_name,
        customers.country_code,
        customers.city,
        customers.tier,
        customers.signup_channel,
        customers.is_opted_in,
        coalesce(orders.order_count, 0) as order_count,
        coalesce(orders.lifetime_total_usd, 0) as lifetime_total_usd,
        customers.created_at as signed_up_at,
        orders.first_ordered_at,
        orders.last_ordered_at
    from customers
    left join orders on customers.customer_id = orders.customer_id
)

select * from described
