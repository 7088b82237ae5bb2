{{
    config(
        unique_key='customer_id',
        indexes=[{'columns': ['customer_id', 'valid_from'], 'unique': true}, {'columns': ['_etl_run_id']}],
    )
}}

{{- collect_touched_versions(ref('snap_customers'), key=['customer_id']) }}

with

versions as (
    {{
        versions_of(
            ref('snap_customers'),
            key=['customer_id'],
            columns=[
                "email",
                "concat_ws(' ', first_name, last_name) as full_name",
                "country::text as country_code",
                "city",
                "tier",
                "marketing_opt_in as is_opted_in",
            ],
        )
    }}
),

history as (
    select
        customer_id,
        version_number,
        email,
        full_name,
        country_code,
        city,
        tier,
        is_opted_in,
        is_deleted,
        valid_from,
        valid_to,
        _etl_run_id
    from versions
)

select * from history
