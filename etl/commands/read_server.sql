-- The zone of sessions that set none, and the days for which changed rows have been counted. This session has set a
-- zone of its own. A crash loses the counters, so what they say is certain only since the start of the server.
select
    (
        select z.reset_val from pg_catalog.pg_settings as z
        where z.name = 'TimeZone'
    ) as time_zone,
    extract(day from now() - greatest(s.stats_reset, pg_catalog.pg_postmaster_start_time()))::int as days
from pg_catalog.pg_stat_database as s
where s.datname = pg_catalog.current_database()
