-- Version 4: what the live page, status and the totals ask for all the time, without reading every run that has ended.

CREATE INDEX IF NOT EXISTS runs_shown ON runs (created_at DESC) WHERE json_extract(options, '$.forgotten_at') IS NULL;

CREATE INDEX IF NOT EXISTS runs_unfinished ON runs (created_at DESC) WHERE state <> 'ended';

CREATE INDEX IF NOT EXISTS runs_by_group ON runs (json_extract(options, '$.queue.group'));

CREATE INDEX IF NOT EXISTS stage_intervals_by_end ON stage_intervals (coalesce(ended_at, last_at));
