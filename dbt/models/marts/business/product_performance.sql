{{ config(indexes=[{'columns': ['product_id'], 'unique': true}, {'columns': ['category', 'category_rank']}]) }}

with

products as (
    select * from {{ ref('dim_products_history') }}
    where is_current
),

sales as (
    select
        product_id,
        sum(net_usd) filter (where not is_reversed) as revenue_usd,
        sum(margin_usd) filter (where not is_reversed) as margin_usd,
        count(distinct order_id) filter (where not is_reversed) as order_count,
        sum(quantity) filter (where not is_reversed) as kept_unit_count,
        sum(quantity) filter (where is_returned) as returned_unit_count,
        min(order_date) filter (where not is_reversed) as first_sale_date,
        max(order_date) filter (where not is_reversed) as last_sale_date
    from {{ ref('fct_sales') }}
    group by product_id
),

performance as (
    select
        products.product_id,
        products.sku,
        products.product_name,
        products.category,
        coalesce(sales.revenue_usd, 0) as revenue_usd,
        coalesce(sales.margin_usd, 0) as margin_usd,
        coalesce(sales.order_count, 0)::integer as order_count,
        coalesce(sales.kept_unit_count, 0)::integer as kept_unit_count,
        coalesce(sales.returned_unit_count, 0)::integer as returned_unit_count,
        (coalesce(sales.kept_unit_count, 0) + coalesce(sales.returned_unit_count, 0))::integer as sold_unit_count,
        products.is_active,
        products.is_deleted,
        sales.first_sale_date,
        sales.last_sale_date
    from products
    left join sales on products.product_id = sales.product_id
),

ranked as (
    select
        *,
        round(margin_usd / nullif(revenue_usd, 0), 4) as margin_rate,
        round(returned_unit_count::numeric / nullif(sold_unit_count, 0), 4) as return_rate,
        rank() over (partition by category order by revenue_usd desc)::integer as category_rank,
        round(revenue_usd / nullif(sum(revenue_usd) over (partition by category), 0), 4) as category_revenue_share
    from performance
)

select * from ranked
