"""lastcall archives the outputs of SaaS export and conversion jobs into S3 before the vendor deletes them.

Reading order: `model` (the nouns), `errors` (what happens next), `collect` (the whole job), then what it calls: `sources`,
`fetch`, `decode`, `archive`, `ledger`. `app` is everything Celery, `cli` the operator's commands.
"""
