{#
    Records what the builds of stored models have read.

    A stored model notes, in the transaction of its rows, the newest run that had ended before the build began. The
    note never exceeds the notes of the stored models that it reads: a fact that joins a history notes no later run
    than the history, in whatever order the two were built. The next build reads rows of later runs only. A run in
    progress has a higher id than the note, so the next build reads its rows again, whether or not this build saw
    them. A build that fails notes nothing and is repeated in full.
#}

{% macro builds_table() -%}
    {{ api.Relation.create(database=target.database, schema=generate_schema_name('intermediate', none), identifier='dbt_builds') }}
{%- endmacro %}

{# Create the table of builds if it is missing, and delete notes of models that no longer exist; on-run-start. #}
{% macro prepare_builds() -%}
    {%- if execute -%}
    create schema if not exists {{ generate_schema_name('intermediate', none) }};
    create table if not exists {{ builds_table() }} (
        model_name text primary key,
        run_id bigint not null,
        dbt_built_at timestamptz not null
    );
    delete from {{ builds_table() }}
    where model_name not in (
        {%- for node in graph.nodes.values() if node.resource_type in ('model', 'snapshot') -%}
            '{{ node.alias }}', {% endfor -%} ''
    )
    {%- endif -%}
{%- endmacro %}

{#
    Create the schemas of all models and the table of builds, for a build by several processes: each dbt command
    creates those that are missing, and fails if another one does so at the same time.
#}
{% macro prepare_schemas() -%}
    {%- set names = [] -%}
    {%- for node in graph.nodes.values() if node.resource_type in ('model', 'snapshot', 'test') -%}
        {%- do names.append(node.schema) -%}
    {%- endfor -%}
    {%- for name in names | unique -%}
        {%- do adapter.create_schema(api.Relation.create(database=target.database, schema=name)) -%}
    {%- endfor -%}
    {%- do run_query(prepare_builds()) -%}
    {%- do run_query('commit') -%}
{%- endmacro %}

{# The names of the stored models that a node reads, directly or through views. #}
{% macro stored_parents(node) -%}
    {%- set names = [] -%}
    {%- for parent_id in node.depends_on.nodes if parent_id in graph.nodes -%}
        {%- set parent = graph.nodes[parent_id] -%}
        {%- if parent.config.materialized in ('view', 'ephemeral') -%}
            {%- do names.extend(stored_parents(parent)) -%}
        {%- else -%}
            {%- do names.append(parent.alias) -%}
        {%- endif -%}
    {%- endfor -%}
    {{ return(names | unique | list) }}
{%- endmacro %}

{# Take the note of a build before it reads anything; a pre-hook of snapshots, which facts and histories call themselves. #}
{% macro begin_build() -%}
    drop table if exists pg_temp.build_start;
    create temporary table build_start as
    select least(
        (select coalesce(max(runs.run_id), 0) from {{ source('etl', 'runs') }} as runs where runs.ended_at is not null)
        {%- for name in (stored_parents(model) if execute else []) -%}
            , (select coalesce(max(builds.run_id), 0) from {{ builds_table() }} as builds where builds.model_name = '{{ name }}')
        {%- endfor -%}
    ) as run_id
{%- endmacro %}

{# Store the note; post-hook, in the transaction of the rows. #}
{% macro note_build() -%}
    insert into {{ builds_table() }} (model_name, run_id, dbt_built_at)
    select '{{ this.identifier }}', build_start.run_id, now()
    from pg_temp.build_start
    on conflict (model_name) do update set run_id = excluded.run_id, dbt_built_at = excluded.dbt_built_at
{%- endmacro %}

{# The run that the last build of this model noted, as a literal: the planner then knows how few rows are above it. #}
{% macro noted_run() -%}
    {%- if execute and flags.WHICH in ('run', 'build') and is_incremental() -%}
        {{ run_query(
            'select coalesce(max(run_id), 0) from ' ~ builds_table() ~ " where model_name = '" ~ this.identifier ~ "'"
        ).columns[0].values()[0] }}
    {%- else -%}
        0
    {%- endif -%}
{%- endmacro %}

{# Condition: a run changed the row since the last build of this model. For staging models, sources and histories. #}
{% macro is_touched(relation_alias) -%}
    {{ relation_alias }}._etl_run_id > {{ noted_run() }}
{%- endmacro %}

{#
    The orders touched by runs that at least one of these models has not read yet. A run may end between the builds of
    two models, so rules that compare models leave these orders to the next build.
#}
{% macro orders_touched_after(models) -%}
    {%- for parent in ('stg_orders', 'stg_order_items', 'stg_payments') %}
        select parent.order_id from {{ ref(parent) }} as parent
        where parent._etl_run_id > (
            select min(builds.run_id) from {{ builds_table() }} as builds
            where builds.model_name in ('{{ models | join("', '") }}')
        )
        {% if not loop.last %}union all{% endif %}
    {%- endfor %}
{%- endmacro %}
