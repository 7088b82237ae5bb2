{{ config(materialized='view') }}

with

history as (
    select * from {{ ref('int_customers_history') }}
),

described as (
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
        valid_to is null as is_current,
        valid_from,
        valid_to
    from history
)

select * from described
