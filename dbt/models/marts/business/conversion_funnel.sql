{{ config(indexes=[{'columns': ['session_date', 'channel'], 'unique': true}]) }}

with

events as (
    select * from {{ ref('fct_events') }}
),

sessions as (
    select
        session_id,
        (array_agg(event_date order by occurred_at, event_id))[1] as session_date,
        (array_agg(channel order by occurred_at, event_id))[1] as channel,
        bool_or(event_type = 'page_view') as has_page_view,
        bool_or(event_type = 'product_view') as has_product_view,
        bool_or(event_type = 'add_to_cart') as has_add_to_cart,
        bool_or(event_type = 'checkout') as has_checkout,
        bool_or(event_type = 'purchase') as has_purchase
    from events
    group by session_id
),

counted as (
    select
        session_date,
        channel,
        count(*)::integer as session_count,
        count(*) filter (where has_page_view)::integer as page_view_session_count,
        count(*) filter (where has_product_view)::integer as product_view_session_count,
        count(*) filter (where has_add_to_cart)::integer as add_to_cart_session_count,
        count(*) filter (where has_checkout)::integer as checkout_session_count,
        count(*) filter (where has_purchase)::integer as purchase_session_count,
        -- A visit may lack an early step, so a rate is a fraction of the visits with the previous step.
        round(avg(has_product_view::integer) filter (where has_page_view), 4) as product_view_rate,
        round(avg(has_add_to_cart::integer) filter (where has_product_view), 4) as add_to_cart_rate,
        round(avg(has_checkout::integer) filter (where has_add_to_cart), 4) as checkout_rate,
        round(avg(has_purchase::integer) filter (where has_checkout), 4) as purchase_rate,
        round(avg(has_purchase::integer), 4) as conversion_rate
    from sessions
    group by session_date, channel
)

select * from counted
