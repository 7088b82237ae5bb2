{#
    The versions of each row that a snapshot has kept, with their validity in the shop's time.

    A snapshot orders versions by when `raw` was written. Analysts ask what was true when an order was placed, so a
    version is valid from when the shop changed the row, or from when the row was found deleted. If that time is not
    after that of the version before (a row that came back unchanged, or a change that did not set `updated_at`), the
    version is valid from when `raw` was written. The clocks of shop and warehouse may disagree: no version begins
    before the one it follows, and a version that was valid for no time is left out. So there is no gap and no overlap.
    The first version is valid from `first_valid_from`. By default that is the row's creation, because its state before
    the first change that was seen is unknown.
    An incremental build rebuilds all versions of touched keys.
#}
{% macro versions_of(snapshot, key, columns, first_valid_from='least(created_at, changed_at)') -%}
    {%- set key_columns = key | join(', ') -%}
    select
        *,
        row_number() over (partition by {{ key_columns }} order by valid_from) as version_number
    from (
        select
            *,
            lead(valid_from) over (partition by {{ key_columns }} order by version_order) as valid_to
        from (
            select
                *,
                max(
                    case
                        when version_order = 1 then {{ first_valid_from }}
                        when changed_at <= changed_at_before then written_at
                        else changed_at
                    end
                ) over (partition by {{ key_columns }} order by version_order) as valid_from
            from (
                select
                    *,
                    lag(changed_at) over (partition by {{ key_columns }} order by version_order) as changed_at_before
                from (
                    select
                        {{ key_columns }},
                        {%- for column in columns %}
                        {{ column }},
                        {%- endfor %}
                        _etl_deleted_at is not null as is_deleted,
                        created_at,
                        coalesce(_etl_deleted_at, updated_at) as changed_at,
                        dbt_valid_from as written_at,
                        _etl_run_id,
                        row_number() over (partition by {{ key_columns }} order by _etl_run_id, dbt_valid_from) as version_order
                    from {{ snapshot }}
                    {%- if is_incremental() %}
                    where ({{ key_columns }}) in (select {{ key_columns }} from {{ touched_keys() }})
                    {%- endif %}
                ) as numbered
            ) as preceded
        ) as begun
    ) as bounded
    where valid_to is null or valid_from < valid_to
{%- endmacro %}

{# Collect the keys with versions in a snapshot that the last build has not read; a history begins with this. #}
{% macro collect_touched_versions(snapshot, key) -%}
    {%- call collect_touched_keys() %}
    select distinct versions.{{ key | join(', versions.') }}
    from {{ snapshot }} as versions
    where {{ is_touched('versions') }}
    {%- endcall %}
{%- endmacro %}

{# Condition: the version had begun at an instant; the first version also counts for all earlier instants. #}
{% macro had_begun(version, instant) -%}
    ({{ version }}.version_number = 1 or {{ version }}.valid_from <= {{ instant }})
{%- endmacro %}

{# Condition: the version was the valid one at an instant. #}
{% macro was_valid_at(version, instant) -%}
    {{ had_begun(version, instant) }} and ({{ version }}.valid_to is null or {{ instant }} < {{ version }}.valid_to)
{%- endmacro %}
