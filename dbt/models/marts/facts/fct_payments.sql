{{
    config(
        unique_key='payment_id',
        indexes=[
            {'columns': ['payment_id'], 'unique': true},
            {'columns': ['order_id']},
            {'columns': ['customer_id']},
            {'columns': ['payment_date']},
        ],
    )
}}

{%- call collect_touched_keys() %}
select payments.payment_id
from {{ ref('stg_payments') }} as payments
where {{ is_touched('payments') }}
union
select payments.payment_id
from {{ ref('stg_payments') }} as payments
inner join {{ ref('stg_orders') }} as orders on payments.order_id = orders.order_id
where {{ is_touched('orders') }}
{%- endcall %}

with

payments as (
    select * from {{ ref('stg_payments') }}
    where not is_deleted {{ where_touched('payment_id', 'and') }}
),

orders as (
    select * from {{ ref('stg_orders') }}
    where not is_deleted
),

described as (
    select
        payments.payment_id,
        payments.order_id,
        orders.customer_id,
        payments.method,
        payments.status,
        orders.channel,
        payments.amount_usd,
        payments.status = 'refunded' as is_refund,
        payments.paid_at is not null as is_settled,
        {{ hours_between('orders.ordered_at', 'payments.paid_at') }} as hours_after_order,
        payments.created_at,
        payments.paid_at,
        (coalesce(payments.paid_at, payments.created_at) at time zone 'UTC')::date as payment_date,
        now() as dbt_built_at
    from payments
    left join orders on payments.order_id = orders.order_id
)

select * from described
