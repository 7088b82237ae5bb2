{#
    Incremental models that equal a full refresh.

    A model names, in a call block of `collect_touched_keys`, the keys whose row may have changed since its last
    build: by `_etl_run_id` of all its parents, never by business time. Exactly these keys are deleted and built
    anew, so rows that are gone leave. `note_build`, in the same transaction as the rows, stores the newest run that
    had ended before the keys were collected; a build that fails stores nothing and is repeated in full.

    Each statement sees what was committed before it. What a run in progress commits after the note was taken
    belongs to a run above the noted one, so the next build reads it again, whether this one saw it or not.
#}

{% macro builds_table() -%}
    {{ api.Relation.create(database=target.database, schema=generate_schema_name('intermediate', none), identifier='dbt_builds') }}
{%- endmacro %}

{# Make the table of builds where it is missing; on-run-start. #}
{% macro prepare_builds() -%}
    create schema if not exists {{ generate_schema_name('intermediate', none) }};
    create table if not exists {{ builds_table() }} (
        model_name text primary key,
        run_id bigint not null,
        dbt_built_at timestamptz not null
    )
{%- endmacro %}

{# True for rows of a staging model or source that a run has changed since the last build of this model. #}
{% macro is_touched(relation_alias) -%}
    {{ relation_alias }}._etl_run_id > (
        select coalesce(max(builds.run_id), 0) from {{ builds_table() }} as builds where builds.model_name = '{{ this.identifier }}'
    )
{%- endmacro %}

{# The temporary table of touched keys of this model. #}
{% macro touched_keys() -%}
    pg_temp.{{ adapter.quote('touched_' ~ this.identifier) }}
{%- endmacro %}

{# Note the newest ended run, then collect the keys that the call block selects. Writes nothing but temporary tables. #}
{% macro collect_touched_keys() -%}
    {%- set selected_keys = caller() -%}
    {%- if execute and flags.WHICH in ('run', 'build') and model.resource_type == 'model' -%}
        {%- do run_query(
            'drop table if exists pg_temp.build_start;'
            ~ ' create temporary table build_start as'
            ~ ' select coalesce(max(run_id), 0) as run_id from ' ~ source('etl', 'runs') ~ ' where ended_at is not null'
        ) -%}
        {%- if is_incremental() -%}
            {%- do run_query(
                'drop table if exists ' ~ touched_keys() ~ ';'
                ~ ' create temporary table ' ~ adapter.quote('touched_' ~ this.identifier) ~ ' as '
                ~ selected_keys ~ '; analyze ' ~ touched_keys()
            ) -%}
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}

{# Store from where the next build of this model reads; post-hook, in the transaction of the rows. #}
{% macro note_build() -%}
    insert into {{ builds_table() }} (model_name, run_id, dbt_built_at)
    select '{{ this.identifier }}', build_start.run_id, now()
    from pg_temp.build_start
    on conflict (model_name) do update set run_id = excluded.run_id, dbt_built_at = excluded.dbt_built_at
{%- endmacro %}

{# The incremental strategy `rebuild_touched`: what was touched goes, what is still there comes back. #}
{% macro get_incremental_rebuild_touched_sql(arg_dict) -%}
    {%- set columns = get_quoted_csv(arg_dict['dest_columns'] | map(attribute='name')) -%}
    {%- set key = adapter.quote(arg_dict['unique_key']) -%}
    delete from {{ arg_dict['target_relation'] }}
    where {{ key }} in (select touched.{{ key }} from {{ touched_keys() }} as touched);

    insert into {{ arg_dict['target_relation'] }} ({{ columns }})
    select {{ columns }}
    from {{ arg_dict['temp_relation'] }}
{%- endmacro %}
