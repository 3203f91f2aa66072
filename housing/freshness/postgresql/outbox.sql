-- The trigger function that writes the tags of other programs' writes to the outbox. triggers.py creates it beside the outbox, with a trigger for each
-- kind of statement. Its arguments are the table as tags name it, the column of the primary key ('' if its values cannot be part of a tag), and as JSON the
-- columns whose values are scopes, the columns of the table's models, and the name of this form of tags. Other columns shape no response.
--
-- It is SECURITY DEFINER, because a role that may write the table need not have a right to the outbox. As it runs with the rights of its owner, its
-- search_path is fixed. record_image_ne() compares stored values, so it sees 1.0 become 1.00, and needs no operator of the columns' types.
CREATE OR REPLACE FUNCTION @SCHEMA@.freshness_outbox() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    name CONSTANT text := TG_ARGV[0];
    everything CONSTANT text := concat(name, E'\n', name, ':*');
    pk CONSTANT text := nullif(TG_ARGV[1], '');
    scopes CONSTANT text[] := ARRAY(SELECT jsonb_array_elements_text(TG_ARGV[2]::jsonb));
    columns CONSTANT text[] := ARRAY(SELECT jsonb_array_elements_text(TG_ARGV[3]::jsonb));
    number bigint := 0;   -- of rows, at most one more than have tags of their own
    source text;          -- SQL: the rows, as r
    differs text;         -- SQL: whether a row has changed
    parts text;           -- SQL: the tags of a row, each as (what follows the table's name, value, what follows that, whether it is touched)
    tags text;
    deleted text;         -- the tags of what this transaction deleted
    is_known boolean := TG_OP <> 'TRUNCATE';  -- whether rows have tags of their own
    is_changed boolean;
    is_again boolean;     -- whether a row is inserted again
    mark CONSTANT text := concat('/* freshness ', regexp_replace(current_setting('application_name'), '@UNSAFE@', '_', 'g'), ' ');
BEGIN
    -- The condition of the trigger knows the mark of a statement for one table. This one may have several, or a name that cannot stand in a comment.
    IF pg_trigger_depth() = 1 AND starts_with(current_query(), mark)
        AND regexp_replace(name, '@UNSAFE_IN_TABLES@', '_', 'g') = ANY (string_to_array(split_part(substr(current_query(), length(mark) + 1), ' */', 1), ','))
    THEN
        RETURN NULL;
    END IF;

    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        SELECT count(*) INTO number FROM (SELECT FROM freshness_new LIMIT @MANY_ROWS@ + 1) x;
    ELSIF TG_OP = 'DELETE' THEN
        SELECT count(*) INTO number FROM (SELECT FROM freshness_old LIMIT @MANY_ROWS@ + 1) x;
    END IF;
    IF number = 0 AND is_known THEN
        RETURN NULL;
    END IF;

    -- A migration that drops or renames a column comes before its new triggers.
    is_known := is_known AND (pk IS NOT NULL OR TG_OP = 'INSERT') AND NOT EXISTS (
        SELECT FROM unnest(columns) x WHERE x NOT IN (SELECT attname FROM pg_attribute WHERE attrelid = TG_RELID AND NOT attisdropped)
    );

    IF is_known AND TG_OP = 'UPDATE' THEN
        source := format('freshness_old o JOIN freshness_new r USING (%I)', pk);
        SELECT format('record_image_ne(ROW(%s), ROW(%s))', string_agg(format('o.%I', x), ', '), string_agg(format('r.%I', x), ', ')) INTO differs FROM unnest(columns) x;
        EXECUTE format('SELECT count(*) = (SELECT count(*) FROM freshness_new), coalesce(bool_or(%s), false) FROM %s', differs, source)
            INTO is_known, is_changed;
        IF is_known AND NOT is_changed THEN
            RETURN NULL;
        END IF;
        SELECT concat_ws(', ', format('('':'', format(''%%s'', r.%I), '''', %s)', pk, differs), string_agg(part, ', ')) INTO parts FROM (
            SELECT format('(%L, '''', '''', record_image_ne(ROW(o.%I), ROW(r.%I)))', '.' || x, x, x) FROM unnest(columns) x
            UNION ALL  -- a scope that the row leaves or enters
            SELECT format('(%L, format(''%%s'', %s.%I), %L, %s.%I IS NOT NULL AND record_image_ne(ROW(o.%I), ROW(r.%I)))', '.' || x || '=', i, x, e, i, x, x, x)
            FROM unnest(scopes) x, (VALUES ('o', '-'), ('r', '')) y(i, e)
            UNION ALL  -- its scopes through joins, which are not known here
            SELECT format('('':>'', '''', '''', %s)', differs)
            UNION ALL  -- the row, if it leaves a scope
            SELECT format('(''-'', format(''%%s'', r.%I), %L, o.%I IS NOT NULL AND record_image_ne(ROW(o.%I), ROW(r.%I)))', pk, '.' || x, x, x, x) FROM unnest(scopes) x
            UNION ALL  -- a column of a row in a scope
            SELECT format('(%L, format(''%%s'', r.%I), %L, r.%I IS NOT NULL AND record_image_eq(ROW(o.%I), ROW(r.%I)) AND record_image_ne(ROW(o.%I), ROW(r.%I)))',
                '.' || s || '=', s, '.' || x, s, s, s, x, x) FROM unnest(scopes) s, unnest(columns) x WHERE s <> x
        ) y(part);
    ELSIF is_known THEN
        source := CASE TG_OP WHEN 'INSERT' THEN 'freshness_new r' ELSE 'freshness_old r' END;
        SELECT concat_ws(', ',
            format('(%L, '''', '''', true)', CASE TG_OP WHEN 'INSERT' THEN ':+' ELSE ':-' END),
            CASE TG_OP WHEN 'INSERT' THEN '('':>'', '''', '''', true)' END,
            CASE TG_OP WHEN 'DELETE' THEN format('('':'', format(''%%s'', r.%I), '''', true), (''-'', format(''%%s'', r.%I), '''', true)', pk, pk) END,
            string_agg(format('(%L, format(''%%s'', r.%I), %L, r.%I IS NOT NULL)', '.' || x || '=', x, CASE TG_OP WHEN 'DELETE' THEN '-' ELSE '+' END, x), ', ')
        ) INTO parts FROM unnest(scopes) x;
    END IF;

    is_known := is_known AND number <= @MANY_ROWS@;
    IF is_known THEN
        -- A value is quoted as in a URL. A key that would have to be quoted is not known, because it is looked for below.
        EXECUTE format(
            'SELECT bool_and(prefix <> '':'' OR value ~ ''^[A-Za-z0-9_.~-]*$''), concat_ws(E''\n'', $1, string_agg(DISTINCT concat($1, prefix, quoted, suffix), E''\n''))
             FROM %s CROSS JOIN LATERAL (VALUES %s) tag(prefix, value, suffix, is_touched) CROSS JOIN LATERAL (
                 SELECT CASE WHEN value ~ ''^[A-Za-z0-9_.~-]*$'' THEN value ELSE (
                     SELECT string_agg(CASE WHEN c ~ ''^[A-Za-z0-9_.~-]$'' THEN c
                         ELSE upper(regexp_replace(encode(convert_to(c, ''UTF8''), ''hex''), ''(..)'', ''%%\1'', ''g'')) END, '''' ORDER BY n)
                     FROM regexp_split_to_table(value, '''') WITH ORDINALITY x(c, n)
                 ) END
             ) x(quoted) WHERE is_touched', source, parts
        ) INTO is_known, tags USING name;
    END IF;

    -- If this transaction deletes a key and inserts it again, references to the key stay, although the row has changed.
    deleted := coalesce(current_setting('freshness.deleted', true), '');
    IF TG_OP = 'INSERT' AND deleted <> '' THEN
        is_again := deleted = '*' OR strpos(deleted, concat(E'\n', everything, E'\n')) > 0 OR (pk IS NULL AND strpos(deleted, concat(E'\n', name, E'\n')) > 0);
        IF NOT is_again AND pk IS NOT NULL THEN
            EXECUTE format('SELECT bool_or(strpos($1, concat(E''\n'', $2, '':'', r.%I, E''\n'')) > 0) FROM freshness_new r', pk)
                INTO is_again USING deleted, name;
        END IF;
        is_known := is_known AND NOT is_again;
    ELSIF TG_OP = 'DELETE' OR (TG_OP <> 'INSERT' AND NOT is_known) THEN
        deleted := concat(deleted, E'\n', CASE WHEN is_known THEN tags ELSE everything END, E'\n');
        PERFORM set_config('freshness.deleted', CASE WHEN length(deleted) < 8192 THEN deleted ELSE '*' END, true);
    END IF;

    INSERT INTO @SCHEMA@.freshness_outbox (tags) VALUES (concat(CASE WHEN is_known THEN tags ELSE everything END, E'\n|trigger:', TG_ARGV[4]));
    RETURN NULL;
END $$
