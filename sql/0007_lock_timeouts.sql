-- What instances ask for daily waits two seconds at most for a table that an operator's session has locked whole
-- (LOCK TABLE, ALTER TABLE, VACUUM FULL), as the storing of reports does: else all threads would wait as long as it lasts.

ALTER FUNCTION find_customer(TEXT, UUID) SET lock_timeout = '2s';
ALTER FUNCTION find_license(TEXT, UUID) SET lock_timeout = '2s';
ALTER FUNCTION read_usage_reports(TEXT, TIMESTAMPTZ, TIMESTAMPTZ, BIGINT, INTEGER) SET lock_timeout = '2s';
ALTER FUNCTION read_usage_figures(TEXT[], TIMESTAMPTZ) SET lock_timeout = '2s';
