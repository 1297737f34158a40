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
INSERT INTO "chunks" VALUES(1,0,0,1,5,1,0);
INSERT INTO "chunks" VALUES(1,1,1,1,5,0,0);
INSERT INTO "chunks" VALUES(1,2,2,1,5,0,0);
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
INSERT INTO "corpora" VALUES(1,'corpus-1','0000000000000000000000000000000000000000000000000000000000000000',1,1,NULL,1.79593625933590316772e+09);
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
INSERT INTO "events" VALUES(1,1,1.795936259345764637e+09,'info','status','validating','{"status": "validating"}');
INSERT INTO "events" VALUES(2,1,1.79593625935549473758e+09,'info','prepared','3 documents, 15 tokens, 3 chunks','{"documents": 3, "tokens": 15, "bad_lines": 1, "skipped_lines": 0, "truncated_lines": 0, "notes": {}}');
INSERT INTO "events" VALUES(3,1,1.79593625935557150846e+09,'info','status','queued','{"status": "queued", "reason": null}');
INSERT INTO "events" VALUES(4,1,1.79593625936245155335e+09,'info','status','in_progress','{"status": "in_progress", "reason": null}');
INSERT INTO "events" VALUES(5,1,1.79593625936878442759e+09,'info','chunk','chunk 0 is in the cask','{"chunk": 0, "shards": ["s"], "captured": 1, "present": 0, "failed": 0, "tokens_done": 5, "tokens_total": 15}');
CREATE TABLE extractions (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	corpus_id VARCHAR NOT NULL, 
	request JSON NOT NULL, 
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
	notes JSON, 
	first_lines JSON, 
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
INSERT INTO "extractions" VALUES(1,'extraction-1','corpus-1','{"kind": "capture", "cask": "docs", "capture": {"mode": "topk", "tau": 0.05, "head_max": 64, "tail_max": 32, "k": 5, "draws": 50, "pinned_ids": [], "seed": 0, "logprob_codec": "f16", "tail_logprobs": false, "temperatures": []}, "max_length": null, "overflow": "truncate", "loss_on": "all", "carrier": "arrow", "on_error": "skip", "metadata": {}, "corpus_id": "corpus-1"}','in_progress','{"validating": 1795936259.343155, "queued": 1795936259.3555655, "in_progress": 1795936259.3624415}',NULL,NULL,'{"model": "a"}',4,1,0,0,0,'{}','{}',3,15,1,0,0,5,5,10,0.0);
CREATE TABLE idempotency (
	scope VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	object_id VARCHAR NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (scope, "key")
);
INSERT INTO "idempotency" VALUES('extractions me','k','ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff','extraction-1',1.79593625934566760065e+09);
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
INSERT INTO "line_errors" VALUES(1,1,'corpus',2,NULL,'c','not_json','m');
CREATE TABLE shards (
	extraction INTEGER NOT NULL, 
	chunk INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	entry JSON NOT NULL, 
	PRIMARY KEY (extraction, chunk, name), 
	FOREIGN KEY(extraction) REFERENCES extractions (number)
);
INSERT INTO "shards" VALUES(1,0,'s','{"name": "s", "bytes": 10}');
CREATE INDEX extractions_by_status ON extractions (status, number);
CREATE INDEX ix_shards_name ON shards (name);
CREATE INDEX events_by_extraction ON events (extraction, seq);
CREATE INDEX line_errors_by_extraction ON line_errors (extraction, seq);
DELETE FROM "sqlite_sequence";
INSERT INTO "sqlite_sequence" VALUES('events',5);
COMMIT;
PRAGMA user_version = 3;
