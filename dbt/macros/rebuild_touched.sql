{#
    Incremental models whose result equals a full refresh.

    In a call block of `collect_touched_keys`, a model selects the keys whose row may have changed since its last
    build: by `_etl_run_id` of all its parents, never by business time. A build deletes and rebuilds exactly these
    keys, so deleted rows disappear. It takes its note before it collects the keys, and stores the note with the rows
    (see `builds`).
#}

{# The temporary table of touched keys of this model. #}
{% macro touched_keys() -%}
    pg_temp.{{ adapter.quote('touched_' ~ this.identifier) }}
{%- endmacro %}

{#
    Take the note, then collect the keys that the call block selects. Writes only temporary tables.

    If the note is missing, because `dbt_builds` was lost or the model was disabled, the whole table is rebuilt,
    including keys that have been purged from raw since.
#}
{% macro collect_touched_keys() -%}
    {%- set selected_keys = caller() -%}
    {%- if execute and flags.WHICH in ('run', 'build') and model.resource_type == 'model' -%}
        {#- One snapshot from here to the note: all statements of the build see what a run commits meanwhile, or none does. -#}
        {%- do run_query('commit; begin transaction isolation level repeatable read') -%}
        {%- do run_query(begin_build()) -%}
        {%- if is_incremental() -%}
            {#- Statistics lag behind a run: a nested loop planned for one changed row would run for thousands. -#}
            {%- do run_query('set local enable_nestloop = off') -%}
            {%- set unique_key = config.get('unique_key') -%}
            {%- set key = get_quoted_csv([unique_key] if unique_key is string else unique_key) -%}
            {%- do run_query(
                'drop table if exists ' ~ touched_keys() ~ ';'
                ~ ' create temporary table ' ~ adapter.quote('touched_' ~ this.identifier) ~ ' as '
                ~ 'select ' ~ key ~ ' from (' ~ selected_keys ~ ') as selected'
                ~ ' union select ' ~ key ~ ' from ' ~ this
                ~ ' where not exists (select from ' ~ builds_table() ~ " where model_name = '" ~ this.identifier ~ "');"
                ~ ' analyze ' ~ touched_keys()
            ) -%}
            {%- do run_query('set local enable_nestloop to default') -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}

{#
    Condition, in incremental builds only: the row belongs to a touched key.

    It compares with an array, because PostgreSQL pushes that down to the key of the raw table, even through views
    with CTEs, and does not do so with a join. The cost therefore follows the touched rows. Use it on keys of raw tables.
#}
{% macro where_touched(column, conjunction='where') -%}
    {%- if is_incremental() -%}
        {{ conjunction }} {{ column }} = any(array(select touched.{{ column }} from {{ touched_keys() }} as touched))
    {%- endif -%}
{%- endmacro %}

{# The incremental strategy `rebuild_touched`: delete the rows of touched keys, and insert those that still exist. #}
{% macro get_incremental_rebuild_touched_sql(arg_dict) -%}
    {%- set columns = get_quoted_csv(arg_dict['dest_columns'] | map(attribute='name')) -%}
    {%- set unique_key = arg_dict['unique_key'] -%}
    {%- set key = get_quoted_csv([unique_key] if unique_key is string else unique_key) -%}
    delete from {{ arg_dict['target_relation'] }}
    where ({{ key }}) in (select {{ key }} from {{ touched_keys() }});

    insert into {{ arg_dict['target_relation'] }} ({{ columns }})
    select {{ columns }}
    from {{ arg_dict['temp_relation'] }}
{%- endmacro %}
