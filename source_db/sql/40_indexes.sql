create index on customers (updated_at);
create index on products (updated_at);
create index on campaigns (updated_at);
create index on orders (updated_at);
create index on order_items (updated_at);
create index on payments (updated_at);
create index on inventory_levels (updated_at);

create index on orders (customer_id);
create index on orders (campaign_id);
create index on order_items (order_id);
create index on order_items (product_id);
create index on payments (order_id);
