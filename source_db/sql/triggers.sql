create function touch_updated_at() returns trigger
language plpgsql
as $$
begin
    new.updated_at := now();
    return new;
end;
$$;
comment on function touch_updated_at() is 'Sets updated_at of a changed row to the start of its transaction.';

create trigger touch_updated_at before update on customers
for each row execute function touch_updated_at();
create trigger touch_updated_at before update on products
for each row execute function touch_updated_at();
create trigger touch_updated_at before update on campaigns
for each row execute function touch_updated_at();
create trigger touch_updated_at before update on orders
for each row execute function touch_updated_at();
create trigger touch_updated_at before update on order_items
for each row execute function touch_updated_at();
create trigger touch_updated_at before update on payments
for each row execute function touch_updated_at();
create trigger touch_updated_at before update on inventory_levels
for each row execute function touch_updated_at();
