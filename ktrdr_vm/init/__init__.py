"""A first profile of a repository and the playbooks of its gates, from the files that the repository has.

Public: `survey.survey_repository`, `draft.draft_documents`.
"""
