-- A typical OLTP table: bigint key, enum, numeric, jsonb, timestamps, an index on the watermark column.
-- All times are in the past, so that rows changed now are newer.
create type order_status as enum ('placed', 'paid', 'shipped', 'delivered');
create table orders (
    order_id bigint primary key,
    customer_id bigint not null,
    status order_status not null,
    total numeric(12, 2) not null,
    attributes jsonb not null,
    note text,
    ordered_at timestamptz not null,
    updated_at timestamptz not null
);
insert into orders
select
    n,
    mod(n, 50000),
    (array['placed', 'paid', 'shipped', 'delivered'])[mod(n, 4) + 1]::order_status,
    mod(n, 100000) / 7.0,
    jsonb_build_object('channel', 'web', 'position', mod(n, 100)),
    'order number ' || n,
    timestamptz '2020-01-01' + n * interval '1 second',
    timestamptz '2020-01-01' + n * interval '1 second'
from generate_series(1, %(rows)s) as n;
create index on orders (updated_at);
