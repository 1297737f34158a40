BEGIN TRANSACTION;
CREATE TABLE chunks (
	extraction INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	first_document INTEGER NOT NULL, 
	documents INTEGER NOT NULL, 
	tokens INTEGER NOT NULL, 
	done BOOLEAN NOT NULL, 
	deaths INTEGER NOT NULL, 
	PRIMARY KEY (extraction, number), 
	FOREIGN KEY(extraction) REFERENCES extractions (number)
);
INSERT INTO "chunks" VALUES(1,0,0,3,12,0,0);
CREATE TABLE corpora (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	sha256 VARCHAR NOT NULL, 
	bytes INTEGER NOT NULL, 
	lines INTEGER NOT NULL, 
	name VARCHAR, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	UNIQUE (sha256)
);
INSERT INTO "corpora" VALUES(1,'corpus-1','ab',10,3,'c',1.0);
CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	extraction INTEGER NOT NULL, 
	created_at DOUBLE NOT NULL, 
	level VARCHAR NOT NULL, 
	type VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	data JSON NOT NULL, 
	FOREIGN KEY(extraction) REFERENCES extractions (number)
);
CREATE TABLE extractions (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	corpus_id VARCHAR NOT NULL, 
	cask VARCHAR NOT NULL, 
	capture JSON NOT NULL, 
	max_length INTEGER, 
	overflow TEXT NOT NULL, 
	carrier TEXT NOT NULL, 
	on_error TEXT NOT NULL, 
	user_metadata JSON NOT NULL, 
	status TEXT NOT NULL, 
	timestamps JSON NOT NULL, 
	waiting JSON, 
	error JSON, 
	teacher JSON, 
	lines INTEGER NOT NULL, 
	bad_lines INTEGER NOT NULL, 
	skipped_lines INTEGER NOT NULL, 
	truncated_lines INTEGER NOT NULL, 
	split_lines INTEGER NOT NULL, 
	documents INTEGER NOT NULL, 
	tokens_total INTEGER NOT NULL, 
	captured_documents INTEGER NOT NULL, 
	present_documents INTEGER NOT NULL, 
	failed_documents INTEGER NOT NULL, 
	tokens_done INTEGER NOT NULL, 
	tokens_captured INTEGER NOT NULL, 
	bytes_written INTEGER NOT NULL, 
	capture_seconds DOUBLE NOT NULL, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	FOREIGN KEY(corpus_id) REFERENCES corpora (id)
);
INSERT INTO "extractions" VALUES(1,'extraction-1','corpus-1','docs','{"mode": "threshold"}',NULL,'truncate','arrow','skip','{}','queued','{"validating": 1.0, "queued": 2.0}',NULL,NULL,'{"model": "x"}',3,0,0,0,0,3,12,0,0,0,0,0,0,0.0);
CREATE TABLE idempotency (
	scope VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	object_id VARCHAR NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (scope, "key")
);
CREATE TABLE line_errors (
	seq INTEGER NOT NULL, 
	extraction INTEGER NOT NULL, 
	stage VARCHAR NOT NULL, 
	line INTEGER NOT NULL, 
	document INTEGER, 
	custom_id VARCHAR, 
	code VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	PRIMARY KEY (seq), 
	FOREIGN KEY(extraction) REFERENCES extractions (number)
);
CREATE TABLE shards (
	extraction INTEGER NOT NULL, 
	chunk INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	entry JSON NOT NULL, 
	PRIMARY KEY (extraction, chunk, name), 
	FOREIGN KEY(extraction) REFERENCES extractions (number)
);
CREATE INDEX extractions_by_status ON extractions (status, number);
CREATE INDEX ix_shards_name ON shards (name);
CREATE INDEX events_by_extraction ON events (extraction, seq);
CREATE INDEX line_errors_by_extraction ON line_errors (extraction, seq);
DELETE FROM "sqlite_sequence";
COMMIT;
PRAGMA user_version = 1;
