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
INSERT INTO "corpora" VALUES(1,'corpus-000000000000000000000001','abababababababababababababababababababababababababababababababab',10,3,'c',2.0);
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
INSERT INTO "events" VALUES(1,1,5.0,'info','status','validating','{"status": "validating"}');
INSERT INTO "events" VALUES(2,1,6.0,'info','prepared','3 documents, 12 tokens, 1 chunk','{"documents": 3, "tokens": 12, "bad_lines": 0, "skipped_lines": 0, "truncated_lines": 0, "notes": {"blank_line": 1}}');
INSERT INTO "events" VALUES(3,1,8.0,'info','status','queued','{"status": "queued", "reason": null}');
INSERT INTO "events" VALUES(4,2,11.0,'info','status','validating','{"status": "validating"}');
INSERT INTO "events" VALUES(5,3,13.0,'info','status','validating','{"status": "validating"}');
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
INSERT INTO "extractions" VALUES(1,'extraction-000000000000000000000002','corpus-000000000000000000000001','docs','{"mode": "threshold", "tau": 0.05, "head_max": 64, "tail_max": 32, "k": 64, "draws": 50, "pinned_ids": [], "seed": 0, "logprob_codec": "f16", "tail_logprobs": false, "temperatures": []}',NULL,'truncate','arrow','skip','{}','queued','{"validating": 3.0, "queued": 7.0}',NULL,NULL,'{"model": "x"}',3,0,0,0,0,'{"blank_line": 1}','{"blank_line": [2]}',3,12,0,0,0,0,0,0,0.0);
INSERT INTO "extractions" VALUES(2,'extraction-000000000000000000000003','corpus-000000000000000000000001','others','{"mode": "topk", "tau": 0.05, "head_max": 64, "tail_max": 32, "k": 8, "draws": 50, "sampler": "multinomial", "pinned_ids": [3, 5], "seed": 4611686018427387905, "logprob_codec": "u8", "tail_logprobs": false, "temperatures": [2.0]}',1024,'split','zarr','fail','{"who": "\u00dcnsal \"the\" ''quote'' \ud83d\ude00", "n": "1e5"}','validating','{"validating": 9.0}',NULL,NULL,NULL,0,0,0,0,0,NULL,NULL,0,0,0,0,0,0,0,0,0.0);
INSERT INTO "extractions" VALUES(3,'extraction-000000000000000000000004','corpus-000000000000000000000001','older','{"mode":"threshold","tau":1.0e-09,"head_max":64,"tail_max":32,"k":64,"draws":50,"pinned_ids":[],"seed":0,"logprob_codec":"f16","tail_logprobs":false,"temperatures":[]}',NULL,'truncate','arrow','skip','{}','validating','{"validating": 12.0}',NULL,NULL,NULL,0,0,0,0,0,NULL,NULL,0,0,0,0,0,0,0,0,0.0);
CREATE TABLE idempotency (
	scope VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	object_id VARCHAR NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (scope, "key")
);
INSERT INTO "idempotency" VALUES('extractions anonymous','first','c29d561c23a714a2441791bf0e07e5263e4ea1daebc08175f6eb997260224673','extraction-000000000000000000000002',4.0);
INSERT INTO "idempotency" VALUES('extractions anonymous','second','d68c1200ca4b61f22240ee23707f6319732bf2600002b7385597e760444d8a9f','extraction-000000000000000000000003',10.0);
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
INSERT INTO "line_errors" VALUES(1,2,'corpus',2,NULL,'a','not_json','it is not');
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
INSERT INTO "sqlite_sequence" VALUES('events',5);
COMMIT;
PRAGMA user_version = 2;
