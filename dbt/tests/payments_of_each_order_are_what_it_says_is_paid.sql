with

payments as (
    select
        order_id,
        coalesce(sum(amount_usd) filter (where status = 'captured'), 0) as paid_usd,
        coalesce(-sum(amount_usd) filter (where is_refund), 0) as refunded_usd
    from {{ ref('fct_payments') }}
    group by order_id
)

select
    orders.order_id,
    orders.paid_usd,
    payments.paid_usd as paid_by_payments_usd,
    orders.refunded_usd,
    payments.refunded_usd as refunded_by_payments_usd
from {{ ref('fct_orders') }} as orders
left join payments on orders.order_id = payments.order_id
where
    (
        orders.paid_usd <> coalesce(payments.paid_usd, 0)
        or orders.refunded_usd <> coalesce(payments.refunded_usd, 0)
    )
    and orders.order_id not in ({{ orders_touched_after(['fct_orders', 'fct_payments']) }})
