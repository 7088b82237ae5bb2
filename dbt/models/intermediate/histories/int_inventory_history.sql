{{
    config(
        unique_key=['product_id', 'warehouse_code'],
        indexes=[
            {'columns': ['product_id', 'warehouse_code', 'valid_from'], 'unique': true},
            {'columns': ['_etl_run_id']},
        ],
    )
}}

{{- collect_touched_versions(ref('snap_inventory_levels'), key=['product_id', 'warehouse_code']) }}

with

-- Stock is valid from when it was first seen, because earlier days would show only stock that has not changed since.
versions as (
    {{
        versions_of(
            ref('snap_inventory_levels'),
            key=['product_id', 'warehouse_code'],
            columns=["on_hand", "reserved", "on_hand - reserved as available", "reorder_point"],
            first_valid_from='written_at',
        )
    }}
),

history as (
    select
        product_id,
        warehouse_code,
        version_number,
        on_hand,
        reserved,
        available,
        reorder_point,
        is_deleted,
        valid_from,
        valid_to,
        _etl_run_id
    from versions
)

select * from history
