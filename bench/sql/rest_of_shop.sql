-- Three more tables: together with orders, 3.6 times the rows of orders.
create type event_kind as enum ('viewed', 'added', 'ordered');
create table customers (
    customer_id bigint primary key,
    name text not null,
    email text not null,
    country text,
    credit_limit numeric(12, 2),
    created_at timestamptz not null,
    updated_at timestamptz not null
);
insert into customers
select
    n,
    'Customer ' || n,
    'customer.' || n || '@shop.example',
    (array['IT', 'DE', 'FR', null])[mod(n, 4) + 1],
    mod(n, 1000) * 10.5,
    timestamptz '2020-01-01' + n * interval '1 second',
    timestamptz '2020-01-01' + n * interval '1 second'
from generate_series(1, %(rows)s / 10) as n;
create index on customers (updated_at);

create table order_items (
    order_item_id bigint primary key,
    order_id bigint not null,
    product_id integer not null,
    quantity integer not null,
    unit_price numeric(12, 2) not null,
    is_gift boolean not null,
    updated_at timestamptz not null
);
insert into order_items
select
    n,
    (n + 1) / 2,
    mod(n, 1000),
    mod(n, 5) + 1,
    mod(n, 10000) / 7.0,
    mod(n, 20) = 0,
    timestamptz '2020-01-01' + n * interval '1 second'
from generate_series(1, %(rows)s * 2::bigint) as n;
create index on order_items (updated_at);

create table events (
    event_id bigint primary key,
    customer_id bigint not null,
    kind event_kind not null,
    payload jsonb not null,
    happened_at timestamptz not null,
    updated_at timestamptz not null
);
insert into events
select
    n,
    mod(n, 50000),
    (array['viewed', 'added', 'ordered'])[mod(n, 3) + 1]::event_kind,
    jsonb_build_object('page', '/products/' || mod(n, 1000), 'seconds', mod(n, 60), 'is_mobile', mod(n, 2) = 0),
    timestamptz '2020-01-01' + n * interval '1 second',
    timestamptz '2020-01-01' + n * interval '1 second'
from generate_series(1, %(rows)s / 2) as n;
create index on events (updated_at);
