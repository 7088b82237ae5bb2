create type customer_tier as enum ('bronze', 'silver', 'gold', 'platinum');
create type sales_channel as enum ('web', 'mobile', 'store', 'marketplace');
create type campaign_channel as enum ('email', 'search', 'social', 'affiliate');
create type order_status as enum ('cart', 'placed', 'paid', 'shipped', 'delivered', 'cancelled', 'returned');
create type payment_method as enum ('card', 'paypal', 'bank_transfer', 'gift_card');
create type payment_status as enum ('authorized', 'captured', 'failed', 'refunded');
create type event_type as enum ('page_view', 'product_view', 'add_to_cart', 'checkout', 'purchase');

comment on type customer_tier is 'Loyalty tier of a customer, lowest first.';
comment on type sales_channel is 'Where an order or an event came from.';
comment on type campaign_channel is 'Where a campaign runs.';
comment on type order_status is 'States of an order: cart, placed, paid, shipped, delivered; or cancelled, returned.';
comment on type payment_method is 'How a payment was made.';
comment on type payment_status is 'States of a payment; a refund is a payment of its own with a negative amount.';
comment on type event_type is 'Steps of a shop visit, widest first.';
