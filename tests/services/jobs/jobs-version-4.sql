BEGIN TRANSACTION;
CREATE TABLE answer_chunks (
	job INTEGER NOT NULL, 
	stage INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	first_request INTEGER NOT NULL, 
	requests INTEGER NOT NULL, 
	done BOOLEAN NOT NULL, 
	deaths INTEGER NOT NULL, 
	PRIMARY KEY (job, stage, number), 
	FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE TABLE chunks (
	extraction INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	first_document INTEGER NOT NULL, 
	documents INTEGER NOT NULL, 
	tokens INTEGER NOT NULL, 
	done BOOLEAN NOT NULL, 
	deaths INTEGER NOT NULL, 
	PRIMARY KEY (extraction, number), 
	FOREIGN KEY(extraction) REFERENCES jobs (number)
);
INSERT INTO "chunks" VALUES(1,0,0,1,5,0,0);
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
INSERT INTO "corpora" VALUES(1,'corpus-3275362716da9d72f97141bc','0000000000000000000000000000000000000000000000000000000000000000',1,1,NULL,1.79596160194675183302e+09);
CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, 
	job INTEGER NOT NULL, 
	created_at DOUBLE NOT NULL, 
	level VARCHAR NOT NULL, 
	type VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	data JSON NOT NULL, 
	FOREIGN KEY(job) REFERENCES jobs (number)
);
INSERT INTO "events" VALUES(1,1,1.79596160195710897447e+09,'info','status','validating','{"status": "validating"}');
INSERT INTO "events" VALUES(2,1,1.79596160196731925015e+09,'info','prepared','3 documents, 15 tokens, 3 chunks','{"documents": 3, "tokens": 15, "bad_lines": 0, "skipped_lines": 0, "truncated_lines": 0, "notes": {}}');
INSERT INTO "events" VALUES(3,1,1.79596160196736693379e+09,'info','status','queued','{"status": "queued", "reason": null}');
INSERT INTO "events" VALUES(4,2,1.79596160197976040836e+09,'info','status','queued','{"status": "queued"}');
INSERT INTO "events" VALUES(5,3,1.79596160198565077785e+09,'info','status','validating','{"status": "validating"}');
CREATE TABLE idempotency (
	scope VARCHAR NOT NULL, 
	"key" VARCHAR NOT NULL, 
	fingerprint VARCHAR NOT NULL, 
	object_id VARCHAR NOT NULL, 
	created_at DOUBLE NOT NULL, 
	PRIMARY KEY (scope, "key")
);
INSERT INTO "idempotency" VALUES('extractions anonymous','first','e6c8b7144b7005f48d26ddc2e50a8a511fe6f72ecd3c2866aaf57e17adb0e4aa','extraction-1',1.79596160195718312262e+09);
INSERT INTO "idempotency" VALUES('generations anonymous','second','907e7e90c537e1c3cb0f806e0c0f54803cca5eb6c965d1b039cba84ffc53f512','generation-1',1.79596160197982740404e+09);
CREATE TABLE jobs (
	number INTEGER NOT NULL, 
	id VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	corpus_id VARCHAR NOT NULL, 
	request JSON NOT NULL, 
	status TEXT NOT NULL, 
	timestamps JSON NOT NULL, 
	waiting JSON, 
	error JSON, 
	teacher JSON, 
	lines INTEGER NOT NULL, 
	bad_lines INTEGER NOT NULL, 
	skipped_lines INTEGER DEFAULT '0' NOT NULL, 
	truncated_lines INTEGER DEFAULT '0' NOT NULL, 
	split_lines INTEGER DEFAULT '0' NOT NULL, 
	notes JSON, 
	first_lines JSON, 
	documents INTEGER DEFAULT '0' NOT NULL, 
	tokens_total INTEGER DEFAULT '0' NOT NULL, 
	captured_documents INTEGER DEFAULT '0' NOT NULL, 
	present_documents INTEGER DEFAULT '0' NOT NULL, 
	failed_documents INTEGER DEFAULT '0' NOT NULL, 
	tokens_done INTEGER DEFAULT '0' NOT NULL, 
	tokens_captured INTEGER DEFAULT '0' NOT NULL, 
	bytes_written INTEGER DEFAULT '0' NOT NULL, 
	capture_seconds DOUBLE DEFAULT '0' NOT NULL, 
	generated_tokens INTEGER DEFAULT '0' NOT NULL, 
	generation_seconds DOUBLE DEFAULT '0' NOT NULL, 
	rows JSON, 
	corpora JSON, 
	PRIMARY KEY (number), 
	UNIQUE (id), 
	FOREIGN KEY(corpus_id) REFERENCES corpora (id)
);
INSERT INTO "jobs" VALUES(1,'extraction-1','capture','corpus-3275362716da9d72f97141bc','{"kind": "capture", "cask": "docs", "capture": {"mode": "threshold", "tau": 0.028, "head_max": 64, "tail_max": 255, "k": 64, "draws": 50, "pinned_ids": [], "seed": 0, "logprob_codec": "f16", "tail_logprobs": false, "temperatures": []}, "max_length": null, "overflow": "truncate", "loss_on": "all", "carrier": "arrow", "on_error": "skip", "metadata": {}, "corpus_id": "corpus-3275362716da9d72f97141bc"}','queued','{"validating": 1795961601.9549143, "queued": 1795961601.9673629}',NULL,NULL,'{"model": "a"}',0,0,0,0,0,'{}','{}',3,15,0,0,0,0,0,0,0.0,0,0.0,NULL,NULL);
INSERT INTO "jobs" VALUES(2,'generation-1','generate','corpus-3275362716da9d72f97141bc','{"kind": "generate", "recipe": "answer", "parameters": {}, "steps": [], "emit": [], "seed": 0, "budget": {"generated_tokens": null}, "on_error": "skip", "extraction": null, "metadata": {}, "corpus_id": "corpus-3275362716da9d72f97141bc", "templates": {}}','queued','{"queued": 1795961601.9778926}',NULL,NULL,NULL,0,0,0,0,0,NULL,NULL,0,0,0,0,0,0,0,0,0.0,0,0.0,NULL,NULL);
INSERT INTO "jobs" VALUES(3,'extraction-2','capture','corpus-3275362716da9d72f97141bc','{"kind": "capture", "cask": "docs", "capture": {"mode": "threshold", "tau": 0.028, "head_max": 64, "tail_max": 255, "k": 64, "draws": 50, "pinned_ids": [], "seed": 0, "logprob_codec": "f16", "tail_logprobs": false, "temperatures": []}, "max_length": null, "overflow": "truncate", "loss_on": "all", "carrier": "arrow", "on_error": "skip", "metadata": {}, "corpus_id": "corpus-3275362716da9d72f97141bc"}','validating','{"validating": 1795961601.9847167}',NULL,NULL,NULL,0,0,0,0,0,NULL,NULL,0,0,0,0,0,0,0,0,0.0,0,0.0,NULL,NULL);
CREATE TABLE line_errors (
	seq INTEGER NOT NULL, 
	job INTEGER NOT NULL, 
	stage VARCHAR NOT NULL, 
	line INTEGER NOT NULL, 
	document INTEGER, 
	custom_id VARCHAR, 
	code VARCHAR NOT NULL, 
	message VARCHAR NOT NULL, 
	PRIMARY KEY (seq), 
	FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE TABLE shards (
	extraction INTEGER NOT NULL, 
	chunk INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	entry JSON NOT NULL, 
	PRIMARY KEY (extraction, chunk, name), 
	FOREIGN KEY(extraction) REFERENCES jobs (number)
);
CREATE TABLE stages (
	job INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	name VARCHAR NOT NULL, 
	kind VARCHAR NOT NULL, 
	template VARCHAR, 
	requests INTEGER NOT NULL, 
	requests_done INTEGER NOT NULL, 
	failed INTEGER NOT NULL, 
	generated_tokens INTEGER NOT NULL, 
	PRIMARY KEY (job, number), 
	FOREIGN KEY(job) REFERENCES jobs (number)
);
CREATE INDEX jobs_by_status ON jobs (status, number);
CREATE INDEX ix_shards_name ON shards (name);
CREATE INDEX events_by_job ON events (job, seq);
CREATE INDEX line_errors_by_job ON line_errors (job, seq);
COMMIT;
PRAGMA user_version = 4;
