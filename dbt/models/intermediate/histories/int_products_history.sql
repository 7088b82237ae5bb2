{{
    config(
        unique_key='product_id',
        indexes=[{'columns': ['product_id', 'valid_from'], 'unique': true}, {'columns': ['_etl_run_id']}],
    )
}}

{{- collect_touched_versions(ref('snap_products'), key=['product_id']) }}

with

versions as (
    {{
        versions_of(
            ref('snap_products'),
            key=['product_id'],
            columns=[
                "sku",
                "name as product_name",
                "category",
                "price as price_usd",
                "cost as cost_usd",
                "is_active",
            ],
        )
    }}
),

history as (
    select
        product_id,
        version_number,
        sku,
        product_name,
        category,
        price_usd,
        cost_usd,
        is_active,
        is_deleted,
        valid_from,
        valid_to,
        _etl_run_id
    from versions
)

select * from history
