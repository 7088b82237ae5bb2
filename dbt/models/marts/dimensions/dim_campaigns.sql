{{ config(indexes=[{'columns': ['campaign_id'], 'unique': true}]) }}

with

campaigns as (
    select * from {{ ref('stg_campaigns') }}
    where not is_deleted
),

described as (
    select
        campaign_id,
        campaign_name,
        channel,
        budget_usd,
        spend_usd,
        budget_usd - spend_usd as remaining_budget_usd,
        case when isfinite(start_date) and isfinite(end_date) then end_date - start_date + 1 end as day_count,
        start_date,
        end_date,
        created_at
    from campaigns
)

select * from described
