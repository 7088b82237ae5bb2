{{ config(indexes=[{'columns': ['campaign_id'], 'unique': true}, {'columns': ['channel', 'channel_rank']}]) }}

with

campaigns as (
    select * from {{ ref('dim_campaigns') }}
),

orders as (
    select
        campaign_id,
        count(*) as order_count,
        count(*) filter (where is_first_order) as new_customer_count,
        sum(margin_usd + cost_usd) as revenue_usd,  -- net of the lines, because margin is net less cost
        sum(margin_usd) as margin_usd
    from {{ ref('fct_orders') }}
    where not is_reversed
    group by campaign_id
),

visits as (
    select
        campaign_id,
        count(distinct session_id) as session_count,
        count(distinct session_id) filter (where event_type = 'purchase') as purchase_session_count
    from {{ ref('fct_events') }}
    group by campaign_id
),

measured as (
    select
        campaigns.campaign_id,
        campaigns.campaign_name,
        campaigns.channel,
        campaigns.budget_usd,
        campaigns.spend_usd,
        coalesce(orders.order_count, 0)::integer as order_count,
        coalesce(orders.new_customer_count, 0)::integer as new_customer_count,
        coalesce(orders.revenue_usd, 0) as revenue_usd,
        coalesce(orders.margin_usd, 0) as margin_usd,
        coalesce(orders.margin_usd, 0) - campaigns.spend_usd as profit_usd,
        round(coalesce(orders.revenue_usd, 0) / nullif(campaigns.spend_usd, 0), 4) as roas,
        round(campaigns.spend_usd / nullif(orders.order_count, 0), 2) as cost_per_order_usd,
        coalesce(visits.session_count, 0)::integer as session_count,
        coalesce(visits.purchase_session_count, 0)::integer as purchase_session_count,
        round(visits.purchase_session_count::numeric / nullif(visits.session_count, 0), 4) as conversion_rate
    from campaigns
    left join orders on campaigns.campaign_id = orders.campaign_id
    left join visits on campaigns.campaign_id = visits.campaign_id
),

ranked as (
    select
        *,
        case when roas >= 0 then rank() over (partition by channel order by roas desc nulls last) end as channel_rank
    from measured
)

select * from ranked
