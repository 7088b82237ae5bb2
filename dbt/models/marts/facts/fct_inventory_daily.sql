{{
    config(
        unique_key=['product_id', 'warehouse_code', 'stock_date'],
        indexes=[
            {'columns': ['product_id', 'warehouse_code', 'stock_date'], 'unique': true},
            {'columns': ['stock_date']},
        ],
    )
}}

{%- call collect_touched_keys() %}
with

last_built as (
    select max(built.stock_date) as stock_date from {{ this }} as built
),

-- Changed stock, and the first day whose final amount may differ.
changed as (
    select
        levels.product_id,
        levels.warehouse_code,
        min(levels.valid_from at time zone 'UTC')::date as from_date
    from {{ ref('int_inventory_history') }} as levels
    where {{ is_touched('levels') }}
    group by levels.product_id, levels.warehouse_code
)

select built.product_id, built.warehouse_code, built.stock_date
from {{ this }} as built
inner join changed on built.product_id = changed.product_id and built.warehouse_code = changed.warehouse_code
where built.stock_date >= changed.from_date
union
select levels.product_id, levels.warehouse_code, closed.stock_date::date as stock_date
from {{ ref('int_inventory_history') }} as levels
cross join last_built
left join changed on levels.product_id = changed.product_id and levels.warehouse_code = changed.warehouse_code
cross join lateral
    {{ days_closed_by('levels', 'least(changed.from_date, last_built.stock_date + 1)') }} as closed (stock_date)
{%- endcall %}

with

levels as (
    select * from {{ ref('int_inventory_history') }}
),

{% if is_incremental() %}
    days as (
        select * from {{ touched_keys() }}
    ),
{% else %}
    days as (
        select
            levels.product_id,
            levels.warehouse_code,
            closed.stock_date::date as stock_date
        from levels
        cross join lateral {{ days_closed_by('levels', 'null') }} as closed (stock_date)
    ),
{% endif %}

stock as (
    select
        days.product_id,
        days.warehouse_code,
        days.stock_date,
        levels.on_hand,
        levels.reserved,
        levels.available,
        levels.reorder_point,
        levels.available <= levels.reorder_point as is_low,
        now() as dbt_built_at
    from days
    inner join levels
        on
            days.product_id = levels.product_id
            and days.warehouse_code = levels.warehouse_code
            and (levels.valid_from at time zone 'UTC')::date <= days.stock_date
            and (levels.valid_to is null or (levels.valid_to at time zone 'UTC')::date > days.stock_date)
    where not levels.is_deleted
)

select * from stock
