{{
    config(
        unique_key='event_id',
        indexes=[
            {'columns': ['event_id'], 'unique': true},
            {'columns': ['event_date']},
            {'columns': ['session_id']},
            {'columns': ['customer_id']},
        ],
    )
}}

{%- call collect_touched_keys() %}
select events.event_id
from {{ ref('stg_events') }} as events
where {{ is_touched('events') }}
{%- endcall %}

with

events as (
    select * from {{ ref('stg_events') }}
    where not is_deleted {{ where_touched('event_id', 'and') }}
),

described as (
    select
        event_id,
        session_id,
        customer_id,
        product_id,
        campaign_id,
        event_type,
        channel,
        device,
        customer_id is not null as is_known_customer,
        occurred_at,
        (occurred_at at time zone 'UTC')::date as event_date,
        now() as dbt_built_at
    from events
)

select * from described
