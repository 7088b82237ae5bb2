{{ config(indexes=[{'columns': ['product_id'], 'unique': true}, {'columns': ['status']}]) }}

with

products as (
    select * from {{ ref('dim_products') }}
),

stock as (
    select
        product_id,
        sum(on_hand) as on_hand,
        sum(available) as available,
        sum(reorder_point) as reorder_point,
        count(*) filter (where is_low) as low_warehouse_count
    from {{ ref('fct_inventory_daily') }}
    where stock_date = (select max(newest.stock_date) from {{ ref('fct_inventory_daily') }} as newest)
    group by product_id
),

sales as (
    select * from {{ ref('fct_sales') }}
),

-- Today is the day of the newest order, so that rebuilding from the same data gives the same result.
today as (
    select max(order_date) as as_of_date from sales
),

demand as (
    select
        sales.product_id,
        sum(sales.quantity) filter (where sales.order_date > today.as_of_date - 30) as units_sold_30_days,
        sum(sales.quantity) filter (where sales.order_date > today.as_of_date - 90) as units_sold_90_days,
        min(sales.order_date) as first_sale_date,
        max(sales.order_date) as last_sale_date
    from sales
    cross join today
    where not sales.is_reversed
    group by sales.product_id
),

-- A new product has had less time to sell: its days begin when it was added or first sold.
selling as (
    select
        products.product_id,
        greatest(1, least(90, today.as_of_date + 1 - least(
            (products.created_at at time zone 'UTC')::date, demand.first_sale_date
        ))) as selling_days
    from products
    cross join today
    left join demand on products.product_id = demand.product_id
),

measured as (
    select
        products.product_id,
        products.sku,
        products.product_name,
        products.category,
        coalesce(stock.on_hand, 0)::integer as on_hand,
        coalesce(stock.available, 0)::integer as available,
        coalesce(stock.reorder_point, 0)::integer as reorder_point,
        coalesce(stock.low_warehouse_count, 0)::integer as low_warehouse_count,
        coalesce(demand.units_sold_30_days, 0)::integer as units_sold_30_days,
        coalesce(demand.units_sold_90_days, 0)::integer as units_sold_90_days,
        selling.selling_days,
        round(coalesce(demand.units_sold_90_days, 0)::numeric / selling.selling_days, 4) as average_daily_units,
        round(greatest(stock.available, 0)::numeric * selling.selling_days / nullif(demand.units_sold_90_days, 0), 4)
            as days_of_cover,
        coalesce(stock.on_hand, 0) * products.cost_usd as stock_value_usd,
        products.is_active,
        demand.last_sale_date,
        today.as_of_date,
        greatest(
            today.as_of_date - greatest(demand.last_sale_date, (products.created_at at time zone 'UTC')::date), 0
        ) as idle_days
    from products
    cross join today
    inner join selling on products.product_id = selling.product_id
    left join stock on products.product_id = stock.product_id
    left join demand on products.product_id = demand.product_id
),

judged as (
    select
        *,
        case
            when not is_active then 'inactive'
            when available <= 0 then 'out_of_stock'
            when idle_days >= {{ var('dead_stock_days') }} then 'dead_stock'
            when available <= reorder_point or days_of_cover < {{ var('low_cover_days') }} then 'low'
            when days_of_cover > {{ var('over_cover_days') }} then 'over'
            else 'healthy'
        end as status
    from measured
),

suggested as (
    select
        *,
        case
            when status in ('out_of_stock', 'low') and units_sold_90_days > 0
                then
                    greatest(
                        ceil(units_sold_90_days::numeric * {{ var('reorder_cover_days') }} / selling_days) - available,
                        reorder_point - available,
                        0
                    )::integer
            else 0
        end as suggested_reorder_units
    from judged
)

select * from suggested
