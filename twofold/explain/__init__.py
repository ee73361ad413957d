"""Why does it do that?"""
