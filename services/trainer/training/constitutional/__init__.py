"""Constitutional training: drafts of the model itself, judged by ethics, criticised by the law they break, and revised."""
