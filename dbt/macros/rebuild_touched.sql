{#
    Incremental models that equal a full refresh.

    A model names, in a call block of `collect_touched_keys`, the keys whose row may have changed since its last
    build: by `_etl_run_id` of all its parents, never by business time. Exactly these keys are deleted and built
    anew, so rows that are gone leave. The note of the build is taken before the keys are collected, and stored with
    the rows (see `builds`).
#}

{# The temporary table of touched keys of this model. #}
{% macro touched_keys() -%}
    pg_temp.{{ adapter.quote('touched_' ~ this.identifier) }}
{%- endmacro %}

{#
    Take the note, then collect the keys that the call block selects. Writes nothing but temporary tables.

    A table without a note, which was lost with `dbt_builds` or while the model was disabled, is built anew: also the
    keys that it has and that have been purged from raw since.
#}
{% macro collect_touched_keys() -%}
    {%- set selected_keys = caller() -%}
    {%- if execute and flags.WHICH in ('run', 'build') and model.resource_type == 'model' -%}
        {#- One snapshot from here to the note: what a run commits meanwhile is seen by all of the build, or by none. -#}
        {%- do run_query('commit; begin transaction isolation level repeatable read') -%}
        {%- do run_query(begin_build()) -%}
        {%- if is_incremental() -%}
            {#- Statistics lag behind a run: a nested loop planned for one changed row would be taken for thousands. -#}
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
    A condition, in an incremental build only: the row belongs to a touched key.

    As an array, because PostgreSQL pushes it down to the key of the raw table, also through views that have CTEs,
    which it does not do with a join: so the cost follows the touched rows. Use it on keys of raw tables.
#}
{% macro where_touched(column, conjunction='where') -%}
    {%- if is_incremental() -%}
        {{ conjunction }} {{ column }} = any(array(select touched.{{ column }} from {{ touched_keys() }} as touched))
    {%- endif -%}
{%- endmacro %}

{# The incremental strategy `rebuild_touched`: what was touched goes, what is still there comes back. #}
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
